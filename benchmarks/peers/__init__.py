"""The servers that ours is compared with: how they are installed and how they are started."""
