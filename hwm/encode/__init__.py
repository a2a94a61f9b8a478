"""Pictures through tokenizers: data of any kind into stores, video files into stores or files of latents."""
