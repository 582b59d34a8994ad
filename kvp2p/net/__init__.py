"""Links between nodes: who is let in, one link a pair, lanes, credit, liveness. Messages in, messages out."""
