"""The feature explorer: static pages on which every latent of a finished study can be opened.

Written here because nothing that exists fits. sae-dashboard 0.8 and sae-vis 0.3 need a
HookedTransformer, pin transformers below 4.57 and datasets below 4, load d3 and Plotly from the
network, and put tokens into pages as HTML; circuitsvis shades tokens and has no tables.
"""
