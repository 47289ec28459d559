"""What speed costs: approximation error against float64 full attention, and bounds that hold
(docs/error.md).

``frontier`` reads a finished error run and needs neither torch nor pandas; everything else here
computes and imports torch.
"""
