"""What a campaign of faults runs on: a dataset, storage, a cluster, and the processes of all."""
