/*
 * The member on the CPU where the request arrived; when that is full, one on another CPU.
 *
 * The connection is then accepted by a worker whose caches its packets are in already. A
 * worker says which CPU it is pinned to in its word: the CPU's number plus 1 (0 is the word
 * of a worker that has said nothing). Compiled with -DBY_NODE, words and requests are
 * compared by NUMA node instead.
 */
#include "overspill_dispatcher.h"

OVERSPILL_DISPATCHER(local_cpu, request)
{
#ifdef BY_NODE
	__u64 here = request->node + 1;
#else
	__u64 here = request->cpu + 1;
#endif
	struct overspill_candidate *c;

	OVERSPILL_FOR_EACH(c, request)
		if (c->word == here)
			return c;
	/* Only members with room are candidates: the local one is full. The first is the
	 * one that next-available takes. */
	return overspill_candidate(request, 0);
}
