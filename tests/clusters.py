"""A real Ray cluster of several nodes on one machine, for tests/test_ray.py: a process of its own that holds them.

    python tests/clusters.py NODES

Says the cluster's address, then the pid of each node's raylet. A line on standard input adds a node; its end ends all.
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # loopback, and nothing told

from ray.cluster_utils import Cluster

SMALL = {"object_store_memory": 100 << 20}


def added(cluster: Cluster) -> int:
    node = cluster.add_node(num_cpus=1, wait=False, **SMALL)
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    print(json.dumps({"address": cluster.address}), flush=True)
    for _ in range(int(sys.argv[1])):
        print(json.dumps({"raylet": added(cluster)}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"raylet": added(cluster)}), flush=True)
    cluster.shutdown()
