"""A Ray cluster of two nodes on this machine, each started in a folder of its own; a line on stdin kills the second."""

import os
import sys

from ray.cluster_utils import Cluster


def main(first: str, second: str) -> None:
    """Print the cluster's address, kill the second node when told to, and end with stdin."""
    os.chdir(first)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    os.chdir(second)
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    if sys.stdin.readline():
        cluster.remove_node(node, allow_graceful=False)
        print("killed", flush=True)
        sys.stdin.readline()
    cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:])
