// Graphs as JS sees them: a recording is begun, ended (or abandoned), run and disposed of.
#include "binding/bind.h"
#include "engine/graph.h"

namespace balora::binding {
namespace {

// Held by JS until it is disposed of or collected.
struct GraphBox {
  std::shared_ptr<Graph> graph;
};
// The graph whose memory another is to share, or none.
struct Sharing {
  const Graph* graph;
};
constexpr napi_type_tag kGraphTag{0x62616c6f72616772, 1};

}  // namespace

template <>
struct Arg<GraphBox*> {
  static std::string ts() { return "unknown"; }
  static GraphBox* from(Env&, const Napi::Value& v) {
    if (v.IsExternal()) {
      auto external = v.As<Napi::External<GraphBox>>();
      if (external.CheckTypeTag(&kGraphTag)) return external.Data();
    }
    throw ArgumentError("expected a graph");
  }
};

template <>
struct Arg<Sharing> {
  static std::string ts() { return "unknown"; }
  static Sharing from(Env& env, const Napi::Value& v) {
    if (v.IsNull() || v.IsUndefined()) return {nullptr};
    const GraphBox* box = Arg<GraphBox*>::from(env, v);
    if (!box->graph) throw ArgumentError("captureGraph: the graph was disposed of");
    return {box->graph.get()};
  }
};

namespace {

Graph& graph_of(GraphBox* box) {
  if (!box->graph) throw ArgumentError("the graph was disposed of");
  return *box->graph;
}

// On the device that is the default now.
Napi::Value begin_graph(Env& env, Sharing sharing) {
  const std::shared_ptr<Graph> graph = Graph::begin(env.engine(), sharing.graph);
  try {
    return make_external(env.napi(), std::make_unique<GraphBox>(GraphBox{graph}), kGraphTag);
  } catch (...) {  // nobody could end it
    graph->abandon();
    throw;
  }
}
void end_graph(GraphBox* box) {
  graph_of(box).end();
}
void abandon_graph(GraphBox* box) {
  graph_of(box).abandon();
  box->graph.reset();
}
void run_graph(GraphBox* box) {
  graph_of(box).run();
}
void dispose_graph(GraphBox* box) {
  box->graph.reset();
}

}  // namespace

void bind_graph(Module& m) {
  op(m, "beginGraph", &begin_graph, {"sharing"});
  op(m, "endGraph", &end_graph, {"graph"});
  op(m, "abandonGraph", &abandon_graph, {"graph"});
  op(m, "runGraph", &run_graph, {"graph"});
  op(m, "disposeGraph", &dispose_graph, {"graph"});
}

}  // namespace balora::binding
