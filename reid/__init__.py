"""Person re-identification adapter."""
