"""Commands that span several packages; each package has its own beside what it runs."""
