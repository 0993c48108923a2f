#![no_main]

animatelcm_fuzz::target!(safetensors_file);
