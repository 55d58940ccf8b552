"""Packets back into streams: what tcpflow does."""
