"""What a run writes about itself: metrics to one or several writers, events to events.jsonl."""
