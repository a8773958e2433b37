// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What a dispatcher costs that does nothing: it answers the first candidate. */
#include "overspill_dispatcher.h"

OVERSPILL_DISPATCHER(first, request)
{
	return overspill_candidate(request, 0);
}
