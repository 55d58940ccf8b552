"""What the honeypot says back: one file each, pure state machines without sockets, files or clocks of their own."""
