"""What happens when somebody touches the sensor: commands, messages, blocks."""
