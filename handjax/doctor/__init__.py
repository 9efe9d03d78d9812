"""Say what this machine has, and what keeps handjax from using it."""
