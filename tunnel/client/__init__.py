"""`trio-tunnel connect`: the session, its data channels, and the targets only this side knows."""
