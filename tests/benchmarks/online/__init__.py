"""What running the teacher at every step costs, beside learning from what it said once."""
