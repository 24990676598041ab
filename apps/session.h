// What commands open before they work: a context, a model, its tokenizer. Errors throw; main() reports them.
#pragma once

#include <filesystem>
#include <string>

#include "apps/options.h"
#include "engine/exec_context.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

namespace inkling::app {

/// The model that the flags name, or the sample model of the source tree or of the installation.
std::filesystem::path model_path(const ModelFlags& flags);

ExecOptions exec_options(const ModelFlags& flags);
LoadOptions load_options(const ModelFlags& flags);

/// Verifies and loads, with progress. The context outlives the model's use.
Model load_model(const ModelFlags& flags, ExecContext& context);
Tokenizer load_tokenizer(const ModelFlags& flags);

/// A tokenizer with more ids than the model has embeddings belongs to another model: Error{malformed}.
void check_vocabulary(const Tokenizer& tokenizer, const Model& model);

/// A whole file, or standard input for "-". Error{file}.
std::string read_text(const std::string& path);

}  // namespace inkling::app
