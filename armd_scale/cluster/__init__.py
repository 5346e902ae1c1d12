"""Jobs on a cluster: submit them, requeue them, record how they were launched."""
