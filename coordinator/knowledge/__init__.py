"""What is known of codes beside what they occur with: relations from vocabularies, and a prior made of them.

A reader a format (`readers`) gives assertions; `hierarchy` turns is-a into similar pairs and hard negatives; `merge`
makes one row a pair; `build` writes a folder; `relations` hands it to the model.
"""
