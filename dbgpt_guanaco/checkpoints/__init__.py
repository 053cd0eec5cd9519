"""Model folders: written shard by shard, whole or not at all."""
