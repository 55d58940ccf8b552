"""Pure decoders: bytes in, values out; no sockets, clocks or logs."""
