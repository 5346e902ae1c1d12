"""Jobs on a cluster: submitted, started again where that helps, and on record."""
