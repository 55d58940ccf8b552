"""The SYN watch: who knocks, at closed and filtered ports too."""
