# What the client needs of the server, put where only the two of them look: a token, and the certificate to verify.
# Run beside the server, once it is up; a second time it changes nothing.
set -eu
umask 077
cd /handover
if [ ! -s demo.token ]; then
    trio-tunnel token revoke demo 2>/dev/null || true  # of a run that was cut short: it cannot be shown again
    trio-tunnel token new demo 2>/dev/null > demo.token.new
    mv demo.token.new demo.token
fi
cp /var/lib/trio-tunnel/server.crt server.crt
echo "client 'demo' has its token, and the certificate to verify the server by"
