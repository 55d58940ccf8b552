"""The rules that bring every port of an address to the sensor's one port: nftables and policy routing."""
