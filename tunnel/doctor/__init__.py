"""What `trio-tunnel doctor` looks at: every step on the way from a visitor's port to the service, one finding each."""
