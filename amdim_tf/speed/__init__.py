"""How fast each part runs, and how near to the machine's limit."""
