"""What is computed with: content ids, manifests, the store, exchange between peers."""
