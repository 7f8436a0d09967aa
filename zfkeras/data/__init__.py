"""Pictures: where they come from and how they are prepared for a network."""
