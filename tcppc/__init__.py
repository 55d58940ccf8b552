"""tcppc: a honeypot sensor that answers on every TCP and UDP port and keeps every byte that strangers send."""

__version__ = "1.0.0"
