#![no_main]

animatelcm_fuzz::target!(tokenizer_files);
