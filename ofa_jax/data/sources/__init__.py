"""Data sources: random access to records, as `base.RecordSource` and `base.DataSet`.

    base                the protocols RecordSource and DataSet
    memory              records that are held in memory
    scenes              Scenes, the embedded data set
      streamed_scenes     the same, with training images that are composed on demand
    ofa_tsv             the official OFA pretraining files as a DataSet
      tsv_records         records of TSV files
      tsv_columns         the formats of the official files and their parsers
      tsv_values          decoders of single columns
      tsv_writing         lines that read back as the records that they are made of
      tsv_file            the lines of large text files
      tsv_index           the line index that gives random access to them
      tsv_conventions     recognises CSV, quoted cells and other encodings
    shards              checks that all files of a data set in shards are there
    array_records       the official data, converted to ArrayRecord
      array_record_writer  writes these files
      tsv_conversion       reads TSV files for their conversion
    tables              what the following sources share: records made of rows
      table_rows          the protocol of rows, and those of several files
      table_checks        checks of the options against a sample of the rows
      field_table         which field of a row is which field of a record
      file_patterns       the files of a split: paths, folders, patterns
      image_paths         images that records name by a path
      json_lines          JSON lines
      image_folders       folders of images with their texts beside them
      arrow_files         Parquet files and saved Hugging Face data sets
      arrow_folders       their splits, shards and partitions
      webdataset          WebDataset tars
      coco_json           JSON files in the format of COCO
      tfds_data           TFDS data sets by their names
    derived_files       files that are made once from a user's files
    mixed               several data sets at given rates
    cached_tasks        seqio's offline caches of tasks
    tfds                TFDS data sets through the TFDS API
    tfds_parquet        TFDS data sets stored as parquet, without TensorFlow
    example_message     the message in which TFDS and others store records
    single_target       wraps a source so that each record has a single target
    negative_controls   wraps a source so that the image does not fit
    downstream_scenes   scenes and sentences of the downstream tasks on Scenes

No module imports TensorFlow, seqio or jax when it is imported; data workers receive sources as
pickles.
"""

__all__ = [
    "array_record_writer",
    "array_records",
    "arrow_files",
    "arrow_folders",
    "base",
    "cached_tasks",
    "coco_json",
    "derived_files",
    "downstream_scenes",
    "example_message",
    "field_table",
    "file_patterns",
    "image_folders",
    "image_paths",
    "json_lines",
    "memory",
    "mixed",
    "negative_controls",
    "ofa_tsv",
    "scenes",
    "shards",
    "single_target",
    "streamed_scenes",
    "table_checks",
    "table_rows",
    "tables",
    "tfds",
    "tfds_data",
    "tfds_parquet",
    "tsv_columns",
    "tsv_conventions",
    "tsv_conversion",
    "tsv_file",
    "tsv_index",
    "tsv_records",
    "tsv_values",
    "tsv_writing",
    "webdataset",
]
