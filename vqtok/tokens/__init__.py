"""Token files."""
