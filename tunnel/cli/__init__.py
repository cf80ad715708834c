"""The command line: `main` parses, calls, prints; the other modules do what its commands say."""
