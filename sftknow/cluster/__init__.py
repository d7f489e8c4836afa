"""Work on a Ray cluster: tasks whose results come as they are done, and a look at every node."""

from sftknow.cluster.connection import Cluster, this_node
from sftknow.cluster.tasks import MAX_STARTS, Outcome, Worker, on_every_node, run_tasks

__all__ = ["MAX_STARTS", "Cluster", "Outcome", "Worker", "on_every_node", "run_tasks", "this_node"]
