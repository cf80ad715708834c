"""systemd units for a server or a client: what they say, whether those installed are still ours, and systemctl."""
