"""Start a Ray cluster of two nodes on this machine, each in its own folder.

The script prints the address of the cluster. A line on stdin kills the second node.
"""

import os
import sys

from ray.cluster_utils import Cluster


def main(first: str, second: str) -> None:
    """Start the cluster, kill the second node on a line from stdin, and end with stdin."""
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
