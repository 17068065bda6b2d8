"""The Deep Defense regulariser and its gradients through the attack."""
