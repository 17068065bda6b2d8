"""Where a run's numbers and pictures are recorded: metrics.jsonl, TensorBoard, W&B, MLflow."""
