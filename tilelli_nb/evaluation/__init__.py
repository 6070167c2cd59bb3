"""What a model's answers are worth: judged, with intervals."""
