from shard_contract import ShardContract

from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.seal_shard import seal_shard
from featstore.store.shards.places import LocalPlace


class TestOneFile(ShardContract):
    def serve(self, parts, folder):
        made = parts[0].parent / "merged"
        if not made.exists():
            for part in parts:
                merge_dataset(part, made, "demo", failures=True, min_free=0)
        return made


class TestUnion(ShardContract):
    def serve(self, parts, folder):
        made = parts[0].parent / "sealed"
        if not made.exists():
            for part in parts:
                seal_shard(part, "demo", LocalPlace(made))
        return made
