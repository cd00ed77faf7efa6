"""CodeGen code completion for PaddleNLP's Taskflow."""
