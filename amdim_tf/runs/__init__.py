"""A config becomes a finished run: trained, exported and measured."""
