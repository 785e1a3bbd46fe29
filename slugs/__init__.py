"""The slug format (a sealed, read-only image), its store, its export."""
