"""What a scan file holds, what training would take from it, and what is suspicious: to be known
before an allocation is spent."""
