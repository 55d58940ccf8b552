"""The capture path: sockets to sessions to the data file."""
