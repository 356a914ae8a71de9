"""What becomes of damaged bytes in this project's caches, and in the formats of others."""
