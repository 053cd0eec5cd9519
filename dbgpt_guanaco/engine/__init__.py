"""What comes next: prompt → text deltas."""
