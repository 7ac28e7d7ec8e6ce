"""An ingest over several processes and machines: shards, and what is known of a run of them."""
