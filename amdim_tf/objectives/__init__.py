"""Views and features become losses: what an encoder learns."""
